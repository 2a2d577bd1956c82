// Gemini CLI ends by process.exit(), and Node then drops what a pipe has not taken yet: its last events, how it ended among them.
for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true);
