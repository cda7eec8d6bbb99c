// pgx: its statement cache, its pool, batches, COPY, cancel. Built in GOPATH mode from Debian's package of the driver.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
)

var background = context.Background()
var sessions = os.Getenv("PGWEIR_MODE") != "transaction"

// The address is in PGHOST and so on.
var address = ""

func main() {
	log.SetFlags(log.Lshortfile)
	for _, address = range []string{"", "statement_cache_mode=describe", "statement_cache_capacity=20"} {
		simpleThings()
		errorsAndTransactions()
		statementsOnManyConnections()
		batches()
		pools()
	}
	address = ""
	copying()
	cancelling()
	settingsFollowTheirClient()
	sessionThings()
}

func connect() *pgx.Conn {
	connection, err := pgx.Connect(background, address)
	check(err)
	return connection
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

func fails(code string, err error) {
	var told *pgconn.PgError
	if !errors.As(err, &told) || told.Code != code {
		log.Output(2, fmt.Sprintf("expected %v, found %v", code, err))
		os.Exit(1)
	}
}

func atOnce(count int, work func(int)) {
	var all sync.WaitGroup
	for n := 0; n < count; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			work(n)
		}(n)
	}
	all.Wait()
}

type querier interface {
	QueryRow(context.Context, string, ...interface{}) pgx.Row
}

func number(q querier, sql string, values ...interface{}) (found int) {
	check(q.QueryRow(background, sql, values...).Scan(&found))
	return
}

func word(q querier, sql string, values ...interface{}) (found string) {
	check(q.QueryRow(background, sql, values...).Scan(&found))
	return
}

func execute(connection *pgx.Conn, sql string, values ...interface{}) error {
	_, err := connection.Exec(background, sql, values...)
	return err
}

func simpleThings() {
	connection := connect()
	defer connection.Close(background)
	for n := 0; n < 5; n++ {
		var i int
		var t string
		var w time.Time
		var b []byte
		var a []int32
		var o *bool
		check(connection.QueryRow(background,
			"select $1::int, $2::text, $3::timestamptz, $4::bytea, $5::int[], $6::bool",
			7, "sieben ä€😀", time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC), []byte{0, 1, 2}, []int32{1, 2, 3}, nil,
		).Scan(&i, &t, &w, &b, &a, &o))
		same(7, i)
		same("sieben ä€😀", t)
		same(int64(1709208000), w.Unix())
		same(3, len(b)+len(a)-3)
		same((*bool)(nil), o)
	}
	check(execute(connection, "drop table if exists go_items; create table go_items (n int primary key, t text)"))
	same(300000, len(word(connection, "select $1::text", strings.Repeat("x", 300000))))
	same(1, number(connection, "select $1::int", pgx.QuerySimpleProtocol(true), 1))
}

func errorsAndTransactions() {
	connection := connect()
	defer connection.Close(background)
	for n := 0; n < 3; n++ {
		fails("22012", execute(connection, "select 1/0"))
		fails("42601", execute(connection, "selekt"))
		fails("22012", execute(connection, "select 1 / $1::int", 0))
		fails("42703", execute(connection, "select nothing + $1", 0))
	}
	for n := 0; n < 5; n++ {
		transaction, err := connection.Begin(background)
		check(err)
		_, err = transaction.Exec(background, "insert into go_items values ($1, $2)", n, "x")
		check(err)
		inner, err := transaction.Begin(background)
		check(err)
		_, err = inner.Exec(background, "insert into go_items values ($1, $2)", n, "again")
		fails("23505", err)
		check(inner.Rollback(background))
		check(transaction.Commit(background))
		same(n+1, number(connection, "select count(*) from go_items"))
	}
	transaction, err := connection.BeginTx(background, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly})
	check(err)
	_, err = transaction.Exec(background, "insert into go_items values ($1, $2)", 99, "x")
	fails("25006", err)
	_, err = transaction.Exec(background, "select $1::int", 99)
	fails("25P02", err)
	check(transaction.Rollback(background))
	same(5, number(connection, "select count(*) from go_items"))
}

// More clients than server connections; the same texts and different ones, again and again.
func statementsOnManyConnections() {
	atOnce(8, func(name int) {
		connection := connect()
		defer connection.Close(background)
		// With describe, pgx 4 takes the name of a statement for its text.
		named := !strings.Contains(address, "describe")
		if named {
			_, err := connection.Prepare(background, "named", fmt.Sprintf("select $1::int * %d", name))
			check(err)
		}
		for n := 0; n < 60; n++ {
			same(n+name, number(connection, "select $1::int + $2::int", n, name))
			same(fmt.Sprintf("%d of %d", n, name), word(connection, fmt.Sprintf("select $1::int::text || ' of %d'", name), n))
			if named {
				same(n*name, number(connection, "named", n))
			}
			if n%7 == 0 {
				transaction, err := connection.Begin(background)
				check(err)
				same(2*n, number(transaction, "select $1::int * 2", n))
				check(transaction.Commit(background))
			}
			if n%11 == 0 {
				fails("22012", execute(connection, "select 1 / $1::int", 0))
			}
		}
		if named {
			check(connection.Deallocate(background, "named"))
			_, err := connection.Prepare(background, "named", "select 'another'")
			check(err)
			same("another", word(connection, "named"))
		}
		// More statements than the cache holds: pgx closes the oldest.
		for n := 0; n < 150; n++ {
			same(name+n, number(connection, fmt.Sprintf("select $1::int + %d", n), name))
		}
	})
}

func batches() {
	connection := connect()
	defer connection.Close(background)
	for round := 0; round < 4; round++ {
		batch := &pgx.Batch{}
		for n := 0; n < 100; n++ {
			batch.Queue("select $1::int + 1", n)
			batch.Queue("select $1::text || 'x'", fmt.Sprint(n))
		}
		results := connection.SendBatch(background, batch)
		for n := 0; n < 100; n++ {
			var sum int
			var text string
			check(results.QueryRow().Scan(&sum))
			check(results.QueryRow().Scan(&text))
			same(n+1, sum)
			same(fmt.Sprint(n)+"x", text)
		}
		check(results.Close())
		broken := &pgx.Batch{}
		broken.Queue("select $1::int + 1", 1)
		broken.Queue("select 1 / $1::int", 0)
		broken.Queue("select $1::int + 1", 2)
		results = connection.SendBatch(background, broken)
		var sum int
		check(results.QueryRow().Scan(&sum))
		fails("22012", results.QueryRow().Scan(&sum))
		results.Close()
		same(4, number(connection, "select $1::int + 1", 3))
	}
}

func pools() {
	pool, err := pgxpool.Connect(background, strings.TrimSpace(address+" pool_max_conns=12"))
	check(err)
	defer pool.Close()
	atOnce(50, func(name int) {
		for n := 0; n < 10; n++ {
			same(n+name, number(pool, "select $1::int + $2::int", n, name))
			check(pool.BeginFunc(background, func(transaction pgx.Tx) error {
				_, err := transaction.Exec(background, "select set_config('my.word', $1, true)", fmt.Sprint(name))
				check(err)
				same(fmt.Sprint(name), word(transaction, "select current_setting('my.word')"))
				rows, err := transaction.Query(background, "select generate_series(1, $1)", 100)
				check(err)
				count := 0
				for rows.Next() {
					count++
				}
				same(100, count)
				return rows.Err()
			}))
		}
	})
}

func copying() {
	connection := connect()
	defer connection.Close(background)
	check(execute(connection, "drop table if exists go_wide; create table go_wide (n int not null, t text)"))
	rows := [][]interface{}{}
	for n := 0; n < 20000; n++ {
		rows = append(rows, []interface{}{int32(n), strings.Repeat("x", n%200)})
	}
	count, err := connection.CopyFrom(background, pgx.Identifier{"go_wide"}, []string{"n", "t"}, pgx.CopyFromRows(rows))
	check(err)
	same(int64(20000), count)
	var out bytes.Buffer
	_, err = connection.PgConn().CopyTo(background, &out, "copy (select n from go_wide order by n) to stdout")
	check(err)
	same(20000, strings.Count(out.String(), "\n"))
	_, err = connection.PgConn().CopyFrom(background, strings.NewReader("1\tx\nnot a number\tx\n"), "copy go_wide from stdin")
	fails("22P02", err)
	_, err = connection.CopyFrom(background, pgx.Identifier{"go_wide"}, []string{"n", "t"}, pgx.CopyFromRows([][]interface{}{{nil, "x"}}))
	fails("23502", err)
	same(20000, number(connection, "select count(*) from go_wide"))
}

func cancelling() {
	connection := connect()
	defer connection.Close(background)
	time.AfterFunc(time.Second, func() { check(connection.PgConn().CancelRequest(background)) })
	fails("57014", execute(connection, "select pg_sleep(20)"))
	same("alive", word(connection, "select 'alive'"))
	// A context that ends closes pgx's connection.
	limited, stop := context.WithTimeout(background, time.Second)
	defer stop()
	if _, err := connect().Exec(limited, "select pg_sleep(20)"); err == nil {
		log.Fatal("it was not cancelled")
	}
}

func settingsFollowTheirClient() {
	zones := []string{"Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "Iran"}
	atOnce(8, func(n int) {
		config, err := pgx.ParseConfig("")
		check(err)
		name, limit := fmt.Sprint("client ", n), fmt.Sprintf("%dms", 9001+n)
		config.RuntimeParams["timezone"] = zones[n]
		config.RuntimeParams["application_name"] = name
		config.RuntimeParams["statement_timeout"] = limit
		connection, err := pgx.ConnectConfig(background, config)
		check(err)
		defer connection.Close(background)
		same(zones[n], connection.PgConn().ParameterStatus("TimeZone"))
		for round := 0; round < 25; round++ {
			same(zones[n], word(connection, "show timezone"))
			same(name, word(connection, "show application_name"))
			same(limit, word(connection, "show statement_timeout"))
		}
		check(execute(connection, "set datestyle to 'German'"))
		for round := 0; round < 10; round++ {
			same("German, DMY", word(connection, "show datestyle"))
		}
	})
}

// What lives in the server's session: in transaction mode such a client keeps its server connection.
func sessionThings() {
	connection, other := connect(), connect()
	defer connection.Close(background)
	defer other.Close(background)
	check(execute(connection, "listen news"))
	check(execute(other, "select pg_notify('news', 'hello')"))
	limited, stop := context.WithTimeout(background, 10*time.Second)
	defer stop()
	note, err := connection.WaitForNotification(limited)
	check(err)
	same("hello", note.Payload)
	if sessions {
		same(other.PgConn().PID(), note.PID)
	}
	check(execute(connection, "create temp table mine as select 1 as n"))
	same(1, number(connection, "select n from mine"))
}
