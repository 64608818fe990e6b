-- +goose Up
-- Restores of this database from a backup that have been taken in.
CREATE TABLE restoration (
    at     BIGINT NOT NULL PRIMARY KEY,
    backup BIGINT NOT NULL -- when the backup was begun
);
