-- +goose Up
-- The index by blocks of 256 records takes the place of table record, which a program of the version before still fills for
-- itself; no later one reads it. Everything here is made from the log, and may be emptied at any time.

-- Blocks of positions number*256 to number*256+255, from 0 without gap, and the times in them.
CREATE TABLE block (
    number   BIGINT NOT NULL PRIMARY KEY,
    min_time BIGINT NOT NULL,
    max_time BIGINT NOT NULL
);

-- Which events have a record, and where. A bucket is what an event's id says about when it was made; entries are 24 bytes each:
-- id, position. Block is the first of those that were indexed together.
CREATE TABLE event_position (
    bucket  BIGINT NOT NULL,
    block   BIGINT NOT NULL,
    entries BYTEA  NOT NULL,
    PRIMARY KEY (bucket, block)
);

-- What a block has: 36 bits of a hash of a type, subject, actor, result or trace, and 27 bits of the block's number.
CREATE TABLE term (key BIGINT NOT NULL PRIMARY KEY);

-- How long the log is known to have been, and the event of its last record then.
ALTER TABLE log ADD COLUMN tip BIGINT NOT NULL DEFAULT 0;
ALTER TABLE log ADD COLUMN tip_event TEXT NOT NULL DEFAULT '';
UPDATE log SET tip = (SELECT max(position) + 1 FROM record), tip_event = (SELECT event_id FROM record ORDER BY position DESC LIMIT 1)
    WHERE EXISTS (SELECT 1 FROM record);
