"""Debian's prometheus-pgbouncer-exporter (1.7, of 2015), its own program, for a PgBouncer of today: two columns that it reads have had
other names since PgBouncer 1.8 and 1.23, without which it does not start. Nothing else of it is changed."""

from prometheus_pgbouncer_exporter import cli, collectors

NAMES = {"total_requests": "total_query_count", "reserve_pool": "reserve_pool_size"}

for collector in (collectors.StatsCollector, collectors.DatabasesCollector):
    collector.metrics = {NAMES.get(column, column): metric for column, metric in collector.metrics.items()}

cli.main()
