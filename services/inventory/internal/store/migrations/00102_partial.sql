-- +goose Up
-- Most certificates replace none, and most are nowhere: those need not stand in an index that is never asked for them.
CREATE INDEX certificate_replacing ON certificate (replaces) WHERE replaces <> '';
DROP INDEX certificate_replaces;
CREATE INDEX certificate_issued_by ON certificate (issuer_key) WHERE present;
DROP INDEX certificate_issuer;
