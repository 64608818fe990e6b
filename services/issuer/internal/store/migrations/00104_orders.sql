-- +goose Up
-- A CA may give the unfinished order of a request that was given up to the next request for the same names.
DROP INDEX request_order;
CREATE UNIQUE INDEX request_order ON request (order_url) WHERE order_url <> '' AND state NOT IN ('refused', 'cancelled');
