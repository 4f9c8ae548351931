-- The services of this node that follow this one: each must have the events before they are freed, also while a process
-- runs without it. One that was removed stays on record with the reason. since is milliseconds since 1970.
create table forebay_follower (
    service text primary key,
    since integer not null,
    removed_at integer,
    removed_why text
) strict, without rowid;
