-- Events out: their place in one order for all readers, and the webhooks that are told of them.

ALTER TABLE events ADD COLUMN sequence bigint UNIQUE CHECK (sequence > 0);
COMMENT ON COLUMN events.sequence IS 'The place in the order in which events are announced, from 1 without a gap; null while it waits for one. Given once, after the event is committed: ids are made before, so that a later one can become visible first.';
UPDATE events SET sequence = numbered.place
FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM events) AS numbered
WHERE numbered.id = events.id;
CREATE INDEX events_waiting ON events (id) WHERE sequence IS NULL;
CREATE INDEX events_by_kind ON events (kind, id);

CREATE TABLE event_sequence (
    id boolean PRIMARY KEY DEFAULT true CHECK (id),
    last bigint NOT NULL CHECK (last >= 0)
);
INSERT INTO event_sequence (last) SELECT count(*) FROM events;
COMMENT ON TABLE event_sequence IS 'One row: how far events are announced. Apart from them, as the number goes on when all of them were removed.';
COMMENT ON COLUMN event_sequence.id IS 'Always true, so that there is one row.';
COMMENT ON COLUMN event_sequence.last IS 'The greatest sequence that was given.';

CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    url text NOT NULL,
    description text NOT NULL,
    kinds text[] CHECK (cardinality(kinds) > 0),
    sealed_secret bytea NOT NULL,
    created_at timestamptz NOT NULL,
    disabled_at timestamptz,
    disabled_reason text,
    last_delivered_at timestamptz,
    failing_since timestamptz,
    CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
);
COMMENT ON TABLE webhooks IS 'Receivers that are told of events.';
COMMENT ON COLUMN webhooks.id IS 'UUIDv7; part of what the secret''s seal is bound to.';
COMMENT ON COLUMN webhooks.url IS 'Where deliveries are sent.';
COMMENT ON COLUMN webhooks.description IS 'What it is for.';
COMMENT ON COLUMN webhooks.kinds IS 'The kinds of events that it is told of; null for all.';
COMMENT ON COLUMN webhooks.sealed_secret IS 'What signs deliveries: AES-256-GCM under a key that is derived from the master key.';
COMMENT ON COLUMN webhooks.created_at IS 'When it was made; events that were announced before are not delivered.';
COMMENT ON COLUMN webhooks.disabled_at IS 'When the server stopped to deliver to it; null while it serves.';
COMMENT ON COLUMN webhooks.disabled_reason IS 'Why, in words.';
COMMENT ON COLUMN webhooks.last_delivered_at IS 'When the receiver took a delivery last.';
COMMENT ON COLUMN webhooks.failing_since IS 'When the first attempt failed of those that failed since it took one; null when the last was taken.';

CREATE TABLE webhook_deliveries (
    id uuid PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id uuid,
    event_sequence bigint,
    event_kind text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts bigint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    created_at timestamptz NOT NULL,
    next_attempt_at timestamptz,
    claimed_until timestamptz,
    last_attempt_at timestamptz,
    last_status integer,
    last_error text,
    finished_at timestamptz,
    CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)),
    CHECK ((status = 'pending') = (finished_at IS NULL)),
    CHECK ((event_id IS NULL) = (event_sequence IS NULL))
);
CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, id);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_attempt_at) WHERE status = 'pending';
COMMENT ON TABLE webhook_deliveries IS 'The outbox: one row for each event and each webhook that wants it, written in the transaction that gives the event its sequence.';
COMMENT ON COLUMN webhook_deliveries.id IS 'UUIDv7; the webhook-id header, the same in every attempt.';
COMMENT ON COLUMN webhook_deliveries.webhook_id IS 'To whom.';
COMMENT ON COLUMN webhook_deliveries.event_id IS 'The event; null for a test. No foreign key: events go by their own retention.';
COMMENT ON COLUMN webhook_deliveries.event_sequence IS 'The event''s sequence; null for a test.';
COMMENT ON COLUMN webhook_deliveries.event_kind IS 'What happened; webhook.test for a test.';
COMMENT ON COLUMN webhook_deliveries.status IS 'Whether it is still to be delivered, was, or was given up.';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'How many attempts were begun.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'When the event was announced.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS 'From when on it may be attempted; null when it is finished.';
COMMENT ON COLUMN webhook_deliveries.claimed_until IS 'Until when a replica has it in hand; afterwards another one takes it, as that replica has died.';
COMMENT ON COLUMN webhook_deliveries.last_attempt_at IS 'When the last attempt was begun.';
COMMENT ON COLUMN webhook_deliveries.last_status IS 'The HTTP status of the last answer; null when there was none.';
COMMENT ON COLUMN webhook_deliveries.last_error IS 'Why the last attempt failed, in words.';
COMMENT ON COLUMN webhook_deliveries.finished_at IS 'When it was delivered or given up.';
