create table reading (number integer primary key, meter text not null, lane text not null, event text not null) strict;
