// What Grafana's data source for Postgres says to a server, on the console: its test of the connection, the questions of its editor, and
// queries in its two formats with their macros put in. By lib/pq, which it was built with up to version 12, and by pgx, which it is
// built with now; both send texts without parameters.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4/pgxpool"
	_ "github.com/lib/pq"
)

var background = context.Background()

// The rows of a query, their values with bars between them.
type ask func(query string) ([]string, []string)

func main() {
	log.SetFlags(log.Lshortfile)
	byPq()
	byPgx()
}

func byPq() {
	database, err := sql.Open("postgres", "sslmode=disable")
	check(err)
	check(database.Ping())
	everything(func(query string) ([]string, []string) {
		rows, err := database.QueryContext(background, query)
		if err != nil {
			log.Fatal(query, ": ", err)
		}
		defer rows.Close()
		types, err := rows.ColumnTypes()
		check(err)
		names, found := []string{}, []string{}
		for _, kind := range types {
			names = append(names, kind.Name()+" "+kind.DatabaseTypeName())
		}
		for rows.Next() {
			values, places := make([]interface{}, len(types)), make([]interface{}, len(types))
			for i := range values {
				places[i] = &values[i]
			}
			check(rows.Scan(places...))
			cells := []string{}
			for _, value := range values {
				switch value := value.(type) {
				case []byte:
					cells = append(cells, string(value))
				case time.Time:
					cells = append(cells, value.UTC().Format(time.RFC3339))
				default:
					cells = append(cells, fmt.Sprint(value))
				}
			}
			found = append(found, strings.Join(cells, "|"))
		}
		check(rows.Err())
		return names, found
	})
	check(database.Close())
}

func byPgx() {
	pool, err := pgxpool.Connect(background, "sslmode=disable")
	check(err)
	check(pool.Ping(background))
	types := map[uint32]string{16: "BOOL", 20: "INT8", 23: "INT4", 25: "TEXT", 1184: "TIMESTAMPTZ", 1700: "NUMERIC"}
	everything(func(query string) ([]string, []string) {
		connection, err := pool.Acquire(background)
		check(err)
		defer connection.Release()
		results, err := connection.Conn().PgConn().Exec(background, query).ReadAll()
		check(err)
		same(1, len(results))
		if results[0].Err != nil {
			log.Fatal(query, ": ", results[0].Err)
		}
		// It passes over everything else.
		if !pgconn.CommandTag(results[0].CommandTag).Select() {
			log.Fatal(query, ": ", results[0].CommandTag)
		}
		names, found := []string{}, []string{}
		for _, field := range results[0].FieldDescriptions {
			names = append(names, string(field.Name)+" "+types[field.DataTypeOID])
		}
		for _, row := range results[0].Rows {
			cells := []string{}
			for _, cell := range row {
				cells = append(cells, string(cell))
			}
			found = append(found, strings.Join(cells, "|"))
		}
		return names, found
	})
	pool.Close()
}

func everything(of ask) {
	// When the data source is set up.
	_, found := of("SELECT 1")
	same("1", strings.Join(found, " "))
	names, found := of("SELECT current_setting('server_version_num')::int/100 as version")
	same("version", strings.Fields(names[0])[0])
	same(1, len(found))
	_, found = of("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
	same(0, len(found))

	// The editor's lists of tables, with and without the schema, and of a table's columns.
	_, found = of("SELECT quote_ident(table_name) AS \"table\" FROM information_schema.tables WHERE quote_ident(table_schema) = 'public' ORDER BY 1")
	isAmong("pools", found)
	inPath := `quote_ident(table_schema) IN (SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
		FROM generate_series(array_lower(string_to_array(current_setting('search_path'),','),1),
			array_upper(string_to_array(current_setting('search_path'),','),1)) as i,
		string_to_array(current_setting('search_path'),',') s)`
	names, found = of(`SELECT CASE WHEN ` + inPath + ` THEN quote_ident(table_name)
		ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS "table"
		FROM information_schema.tables
		WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog', '_timescaledb_cache', '_timescaledb_catalog',
			'_timescaledb_internal', '_timescaledb_config', 'timescaledb_information', 'timescaledb_experimental')
		ORDER BY CASE WHEN ` + inPath + ` THEN 0 ELSE 1 END, 1`)
	same("table TEXT", names[0])
	isAmong("pools", found)
	isAmong("deployments", found)
	for _, table := range []string{"pools", "public.pools"} {
		_, found = of(`SELECT quote_ident(column_name) AS "column", data_type AS "type" FROM information_schema.columns
			WHERE CASE WHEN array_length(parse_ident('` + table + `'),1) = 2
			THEN quote_ident(table_schema) = (parse_ident('` + table + `'))[1] AND quote_ident(table_name) = (parse_ident('` + table + `'))[2]
			ELSE quote_ident(table_name) = '` + table + `' AND ` + inPath + ` END`)
		same(17, len(found))
		isAmong("cl_waiting|integer", found)
	}

	// A table.
	names, found = of(`SELECT database, "user", cl_active, cl_waiting, maxwait FROM pools WHERE database = 'pgbouncer' ORDER BY maxwait DESC LIMIT 50 `)
	same("database TEXT, user TEXT, cl_active INT4, cl_waiting INT4, maxwait INT4", strings.Join(names, ", "))
	same(1, len(found))
	same(true, strings.HasPrefix(found[0], "pgbouncer|pgbouncer|"))
	_, found = of(`SELECT count(*) AS "value" FROM clients WHERE state = 'active'`)
	same(1, len(found))

	// Time series of what is so now: $__time, $__timeFilter and $__timeGroupAlias.
	from, to := "'2020-01-01T00:00:00Z'", "'2199-12-31T23:59:59.5Z'"
	names, found = of(`SELECT now() AS "time", database AS metric, sum(cl_active) AS value FROM pools
		WHERE now() BETWEEN ` + from + ` AND ` + to + ` GROUP BY database ORDER BY 1,2`)
	same("time TIMESTAMPTZ, metric TEXT, value INT8", strings.Join(names, ", "))
	isTime(strings.Split(found[0], "|")[0])
	names, found = of(`SELECT floor(extract(epoch from connect_time::timestamptz)/3600)*3600 AS "time", count(*) AS value FROM clients
		WHERE connect_time::timestamptz BETWEEN ` + from + ` AND ` + to + ` GROUP BY 1 ORDER BY 1`)
	same("time NUMERIC, value INT8", strings.Join(names, ", "))
	same(true, len(found) >= 1)
	_, found = of(`SELECT count(*) FROM clients WHERE connect_time::timestamptz > ` + to)
	same("0", found[0])
}

func isAmong(expected string, found []string) {
	for _, row := range found {
		if row == expected {
			return
		}
	}
	log.Output(2, fmt.Sprintf("%v is not among %v", expected, found))
	os.Exit(1)
}

// As both drivers were told it.
func isTime(text string) {
	for _, format := range []string{time.RFC3339, "2006-01-02 15:04:05.999999-07"} {
		if at, err := time.Parse(format, text); err == nil {
			same(true, time.Since(at) < time.Minute)
			return
		}
	}
	log.Fatal(text, " is no time")
}

func check(err error) {
	if err != nil {
		log.Output(2, err.Error())
		os.Exit(1)
	}
}

func same(expected, found interface{}) {
	if expected != found {
		log.Output(2, fmt.Sprintf("expected %v, found %v", expected, found))
		os.Exit(1)
	}
}
