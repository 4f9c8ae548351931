-- The read model of a service that declares a version: the version that its tables hold, the one that this release
-- declares, when they were built, from how many events, and by which rebuild. Times are milliseconds since 1970.
create table forebay_projection (
    one integer primary key check (one = 1),
    version integer not null,
    declared integer not null,
    built_at integer not null,
    replayed integer not null default 0,
    rebuild text
) strict;

-- The rebuild that was asked for, if one is under way: state is running, failed or lacking, said tells why it stands. How
-- far it was is written here every second or so, for people: events, and the archive's position and end.
create table forebay_rebuild (
    one integer primary key check (one = 1),
    id text not null,
    accept_lacking integer not null,
    state text not null,
    said text not null,
    asked_at integer not null,
    began_at integer,
    replayed integer not null default 0,
    position integer not null default 0,
    archive_end integer not null default 0
) strict;

-- What a rebuild could not find in the archive (both ends included), of the read model in use or of the rebuild that
-- stands for it.
create table forebay_rebuild_lacking (
    node text not null,
    service text not null,
    lane text not null,
    epoch text not null,
    first integer not null,
    last integer not null,
    primary key (node, service, epoch, first)
) strict, without rowid;

-- In the tables beside, while they are built: how far it is. planned is set while the places of one pass are being done,
-- position is the archive's, of the store of which archive is the id; what is foreign and was archived before seen_before
-- has been met by the inbox.
create table forebay_rebuild_progress (
    one integer primary key check (one = 1),
    id text not null,
    version integer not null,
    archive text not null,
    position integer not null,
    archive_end integer not null,
    replayed integer not null,
    skipped integer not null,
    planned integer not null,
    seen_before integer not null,
    started_at integer not null,
    changed_at integer not null
) strict;

-- In the tables beside: per epoch the places that are done, and those that are left of this pass, as lists of ranges.
create table forebay_rebuild_epoch (
    node text not null,
    service text not null,
    lane text not null,
    epoch text not null,
    prev text not null,
    todo text not null,
    done text not null,
    primary key (node, service, epoch)
) strict, without rowid;

-- In the tables beside: the archive's positions of foreign events that had no effect when they were met.
create table forebay_rebuild_later (
    position integer primary key
) strict;
