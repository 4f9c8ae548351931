create table effect (
    position integer primary key autoincrement,
    message_id text not null,
    node text not null,
    service text not null,
    lane text not null,
    meter text not null,
    number integer not null,
    cause text
) strict;

create table total (
    node text not null,
    service text not null,
    meter text not null,
    effects integer not null,
    sum integer not null,
    primary key (node, service, meter)
) strict;

create table notice (number integer not null, event text not null) strict;
