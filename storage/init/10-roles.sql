-- The two roles of a search's database: `dlnn`, which owns it and by which workers write, and
-- `dlnn_viewer`, which may read every table, those of the future too, and change nothing.
--
-- Run by psql as a superuser, connected to the search's database: by PostgreSQL's image at the
-- first start, or by hand, as often as wanted:
--   DLNN_PASSWORD_FILE=... DLNN_VIEWER_PASSWORD_FILE=... psql -v ON_ERROR_STOP=1 -d dlnn -f 10-roles.sql
-- The passwords come from files, so that they stand in no command line and in no log.

\getenv password_file DLNN_PASSWORD_FILE
\getenv viewer_password_file DLNN_VIEWER_PASSWORD_FILE
\if :{?password_file} \else \set password_file /run/secrets/database_password
\endif
\if :{?viewer_password_file} \else \set viewer_password_file /run/secrets/database_viewer_password
\endif
\set password `cat :'password_file'`
\set viewer_password `cat :'viewer_password_file'`

SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET client_min_messages = 'warning';
SET password_encryption = 'scram-sha-256';

SELECT length(:'password') >= 8 AND length(:'viewer_password') >= 8 AS given \gset
\if :given
\else
  DO $$ BEGIN RAISE 'Expected passwords of 8 characters or more in the two files.'; END $$;
\endif

SELECT 'CREATE ROLE dlnn' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dlnn') \gexec
SELECT 'CREATE ROLE dlnn_viewer' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dlnn_viewer') \gexec
ALTER ROLE dlnn LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
ALTER ROLE dlnn_viewer LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 40
  PASSWORD :'viewer_password';
-- Said twice: no right to write, and transactions that would not.
ALTER ROLE dlnn_viewer SET default_transaction_read_only = on;
ALTER ROLE dlnn_viewer SET statement_timeout = '60s';

ALTER DATABASE :"DBNAME" OWNER TO dlnn;
ALTER SCHEMA public OWNER TO dlnn;
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CONNECT ON DATABASE :"DBNAME" TO dlnn_viewer;
GRANT USAGE ON SCHEMA public TO dlnn_viewer;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO dlnn_viewer;
ALTER DEFAULT PRIVILEGES FOR ROLE dlnn IN SCHEMA public GRANT SELECT ON TABLES TO dlnn_viewer;
