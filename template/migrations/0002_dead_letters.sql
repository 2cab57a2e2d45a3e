-- no-transaction
-- Dead letters, newest first. CONCURRENTLY, since jobs are written meanwhile: no transaction, nothing else in the file.
CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_failed ON jobs (failed_at) WHERE failed_at IS NOT NULL;
