-- +goose Up
-- When the certificate was revoked, 0: it was not. Without a window its begin and end are 0.
ALTER TABLE renewal_window ADD COLUMN revoked BIGINT NOT NULL DEFAULT 0;
