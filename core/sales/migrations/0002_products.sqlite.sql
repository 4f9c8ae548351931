-- What all nodes have sold of each product; units are what was bought, cents is money as an integer.
create table product_total (
    product integer not null primary key,
    lines integer not null,
    units integer not null,
    cents integer not null
) strict;

-- What each node has sold of each department; a product that the reference does not know counts for 'unknown'.
create table department_total (
    node text not null,
    department text not null,
    lines integer not null,
    units integer not null,
    cents integer not null,
    primary key (node, department)
) strict, without rowid;

-- What each node has sold per UTC hour, written YYYY-MM-DDTHH.
create table hour_total (
    node text not null,
    hour text not null,
    sales integer not null,
    lines integer not null,
    cents integer not null,
    primary key (node, hour)
) strict, without rowid;
