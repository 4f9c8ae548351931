-- The places of this node's events that a damaged disk took (both ends included): known because the epoch had given them
-- out, they were not freed, and the salvage did not find them. They are in forebay_dropped as well, for the consumers.
create table forebay_lost (
    id integer primary key autoincrement,
    lane text not null,
    epoch text not null,
    first integer not null,
    last integer not null,
    found_at integer not null
) strict;
