-- When the partitions of a consumer had taken in everything that the archive had, where several processes share them (C5).
create table forebay_archive_taken (
    partition integer primary key,
    taken_at integer not null
) strict;
