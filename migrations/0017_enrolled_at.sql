-- A machine is enrolled when it is let in, and not when it asks.

COMMENT ON COLUMN machines.enrolled_at IS 'When it was let in; when the record was made while it waits.';
