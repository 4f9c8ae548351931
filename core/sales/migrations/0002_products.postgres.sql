-- What all nodes have sold of each product; units are what was bought, cents is money as an integer.
create table product_total (
    product bigint not null primary key,
    lines bigint not null,
    units bigint not null,
    cents bigint not null
);

-- What each node has sold of each department; a product that the reference does not know counts for 'unknown'.
create table department_total (
    node text not null,
    department text not null,
    lines bigint not null,
    units bigint not null,
    cents bigint not null,
    primary key (node, department)
);

-- What each node has sold per UTC hour, written YYYY-MM-DDTHH.
create table hour_total (
    node text not null,
    hour text not null,
    sales bigint not null,
    lines bigint not null,
    cents bigint not null,
    primary key (node, hour)
);
