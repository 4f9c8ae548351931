-- What happened to this node's own events, for people, once it was over; the latest only. drop: pushed out by the budget,
-- and every needed consumer has passed it. withheld: refused by the broker for itself, and confirmed or dropped since.
-- Places have both ends included; times are milliseconds since 1970, began_at is not known of a drop.
create table forebay_past (
    id integer primary key autoincrement,
    lane text not null,
    destination text not null default '',
    epoch text not null,
    first integer not null,
    last integer not null,
    kind text not null check (kind in ('drop', 'withheld')),
    reason text not null,
    began_at integer,
    ended_at integer not null
) strict;
