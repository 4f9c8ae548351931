-- The clients' events of the last days: name is a digest of source and id, content one of everything else that was
-- said, message_id what the event was given.
create table client_event (
    name blob primary key,
    content blob not null,
    message_id text not null,
    accepted_at integer not null
) strict, without rowid;

create index client_event_by_age on client_event (accepted_at);
