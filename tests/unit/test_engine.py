"""What the engine's answers mean: what passes is waited for, what does not is said at once."""

from __future__ import annotations

import pytest
import requests
from docker.errors import APIError

from hyperagent_common.errors import DependencyDown, HyperagentError, NotReady
from hyperagent_tasks.runners.engine import told


@pytest.mark.parametrize(
    ("status", "said", "image", "kind"),
    [
        (404, "No such image: r:dev", "r:dev", NotReady),
        (404, "No such container: 0123", "", DependencyDown),
        (404, "No such container: an-image", "", DependencyDown),
        (409, "Conflict. The container name is in use", "r:dev", DependencyDown),
        (400, "unknown or invalid runtime name: none-such", "r:dev", NotReady),
        (500, "no space left on device", "r:dev", DependencyDown),
    ],
)
def test_a_container_that_somebody_pruned_is_no_fault_of_the_step(
    status: int, said: str, image: str, kind: type[HyperagentError]
) -> None:
    answer = requests.Response()
    answer.status_code = status
    with pytest.raises(HyperagentError) as caught, told(image=image):
        raise APIError("refused", answer, said)
    assert type(caught.value) is kind
