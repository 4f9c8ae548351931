-- Rows with numbers: the one process that writes them remembers those of the epochs that are under way, and writes their
-- watermarks by them: a key of three texts took several times as long to find as the row to write.
-- Copied there and back, as a connection that has renamed a table can no longer checkpoint its log (SQLite 3.40).
create table forebay_inbox_before as select * from forebay_inbox;

drop table forebay_inbox;

create table forebay_inbox (
    id integer primary key,
    node text not null,
    service text not null,
    epoch text not null,
    lane text not null,
    prev text not null,
    watermark integer not null,
    held text not null,
    missing text not null default '[]',
    wanted text not null default '[]',
    decided text not null default '{}',
    given_up text,
    abandoned_after integer,
    unique (node, service, epoch)
) strict;

insert into forebay_inbox (node, service, epoch, lane, prev, watermark, held, missing, wanted, decided, given_up,
  abandoned_after)
select node, service, epoch, lane, prev, watermark, held, missing, wanted, decided, given_up, abandoned_after
from forebay_inbox_before order by node, service, epoch;

drop table forebay_inbox_before;

create index forebay_inbox_waiting on forebay_inbox ((node || '/' || service))
  where held <> '[]' or decided <> '{}' or abandoned_after is not null;
