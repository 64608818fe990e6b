-- +goose Up
-- Events that were committed together with the change they tell of. Rows stay after publication, so that a checker can
-- compare them with what arrived.
CREATE TABLE outbox (
    id           TEXT   NOT NULL PRIMARY KEY, -- UUIDv7; its order is about that of the commits, no more
    created      BIGINT NOT NULL,
    kind         TEXT   NOT NULL, -- 'facts' or 'observations'
    payload      BYTEA  NOT NULL, -- a sallyport.event.v1.Event
    published_at BIGINT           -- null: still to be published
);
CREATE INDEX outbox_waiting ON outbox (kind, id) WHERE published_at IS NULL;

-- Ids of the events that were handled, for ever.
CREATE TABLE inbox (
    event_id TEXT   NOT NULL PRIMARY KEY,
    received BIGINT NOT NULL,
    error    TEXT   NOT NULL DEFAULT '' -- why the event was skipped, empty when it was handled
);
CREATE INDEX inbox_skipped ON inbox (received) WHERE error <> '';
