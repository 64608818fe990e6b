-- +goose Up
-- Old reports are forgotten.
CREATE INDEX report_received ON report (received);
