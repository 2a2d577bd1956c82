"""What the API answers about a workflow's patch."""

from __future__ import annotations

from marshmallow import Schema, fields


class PatchEventSchema(Schema):
    """Something that happened to the patch."""

    kind = fields.String()
    step_id = fields.String(allow_none=True)
    revision_id = fields.String(allow_none=True)
    commit = fields.String()
    announced = fields.Boolean()
    synced_with = fields.Integer()
    at = fields.AwareDateTime()


class PatchReviewSchema(Schema):
    """A verdict on its way to the patch, or there."""

    step_id = fields.String()
    verdict_id = fields.String()
    revision_id = fields.String()
    state = fields.String()
    reviewer = fields.String(allow_none=True)
    review_id = fields.String(allow_none=True)
    tries = fields.Integer()
    error_type = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)
    next_at = fields.AwareDateTime(allow_none=True)
    posted_at = fields.AwareDateTime(allow_none=True)


class PatchDeliverySchema(Schema):
    """Who holds the patch besides the host that published it."""

    state = fields.String()
    synced_with = fields.Integer()
    tries = fields.Integer()
    error_type = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)
    next_at = fields.AwareDateTime(allow_none=True)
    at = fields.AwareDateTime()


class PatchSkipSchema(Schema):
    """Why the workflow has no patch."""

    kind = fields.String()
    reason = fields.String()
    step_id = fields.String(allow_none=True)
    at = fields.AwareDateTime()


class PatchSchema(Schema):
    """The workflow's one patch."""

    forge = fields.String()
    rid = fields.String()
    patch_id = fields.String(allow_none=True)
    head = fields.String(allow_none=True)
    published_at = fields.AwareDateTime()
    events = fields.List(fields.Nested(PatchEventSchema))
    reviews = fields.List(fields.Nested(PatchReviewSchema))
    delivery = fields.Nested(PatchDeliverySchema, allow_none=True)
