-- The clients' events of the last days: name is a digest of the source and then the id, so that ids that follow one
-- another stand together (a digest of both put every row into a page of its own: 15 µs a row after 120,000 rows, not 2).
-- content is a digest of everything else that was said, message_id what the event was given. The table client_event
-- stays for the release before this one.
create table client_id (
    name blob primary key,
    content blob not null,
    message_id text not null,
    accepted_at integer not null
) strict, without rowid;

create index client_id_by_age on client_id (accepted_at);
