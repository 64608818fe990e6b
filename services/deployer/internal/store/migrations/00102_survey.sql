-- +goose Up
-- What is under way, for whoever watches over it: how long it has been, and which certificates ought to be renewed by now.
CREATE INDEX assignment_open ON assignment (state, renew_by, updated) WHERE state IN ('planned', 'assigned', 'requested', 'issued', 'failed');
