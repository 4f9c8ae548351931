create table effect (
    position integer primary key,
    node text not null,
    number integer not null,
    cents integer not null
) strict;
