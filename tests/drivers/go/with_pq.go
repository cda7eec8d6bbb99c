// lib/pq behind database/sql, which prepares a statement for each query with parameters and closes it again.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

var background = context.Background()

func main() {
	log.SetFlags(log.Lshortfile)
	for _, options := range []string{"", "binary_parameters=yes"} {
		database := open(options)
		database.SetMaxOpenConns(8)
		simpleThings(database)
		errorsAndTransactions(database)
		statementsOnManyConnections(database)
		check(database.Close())
	}
	database := open("")
	copying(database)
	cancelling(database)
	check(database.Close())
	settingsFollowTheirClient()
	sessionThings()
}

func open(options string) *sql.DB {
	database, err := sql.Open("postgres", "sslmode=disable "+options)
	check(err)
	return database
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
	var told *pq.Error
	if !errors.As(err, &told) || string(told.Code) != code {
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
	QueryRow(string, ...interface{}) *sql.Row
}

func number(q querier, sql string, values ...interface{}) (found int) {
	check(q.QueryRow(sql, values...).Scan(&found))
	return
}

func simpleThings(database *sql.DB) {
	var i int
	var t string
	var w time.Time
	var b []byte
	var a pq.Int64Array
	var o sql.NullBool
	check(database.QueryRow("select $1::int, $2::text, $3::timestamptz, $4::bytea, $5::int[], $6::bool",
		7, "sieben ä€😀", time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC), []byte{0, 1, 2}, pq.Array([]int64{1, 2, 3}), nil,
	).Scan(&i, &t, &w, &b, &a, &o))
	same(7, i)
	same("sieben ä€😀", t)
	same(int64(1709208000), w.Unix())
	same(3, len(b))
	same(3, len(a))
	same(false, o.Valid)
	_, err := database.Exec("drop table if exists pq_items; create table pq_items (n int primary key, t text)")
	check(err)
	same(300000, number(database, "select length($1::text)", strings.Repeat("x", 300000)))
	check(database.Ping())
}

func errorsAndTransactions(database *sql.DB) {
	for n := 0; n < 3; n++ {
		_, err := database.Exec("select 1/0")
		fails("22012", err)
		_, err = database.Exec("selekt $1", 1)
		fails("42601", err)
		_, err = database.Exec("select 1 / $1::int", 0)
		fails("22012", err)
	}
	for n := 0; n < 5; n++ {
		transaction, err := database.Begin()
		check(err)
		_, err = transaction.Exec("insert into pq_items values ($1, $2)", n, "x")
		check(err)
		_, err = transaction.Exec("savepoint s")
		check(err)
		_, err = transaction.Exec("insert into pq_items values ($1, $2)", n, "again")
		fails("23505", err)
		_, err = transaction.Exec("rollback to s")
		check(err)
		check(transaction.Commit())
		same(n+1, number(database, "select count(*) from pq_items"))
	}
	transaction, err := database.BeginTx(background, &sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true})
	check(err)
	_, err = transaction.Exec("insert into pq_items values ($1, $2)", 99, "x")
	fails("25006", err)
	check(transaction.Rollback())
}

// More clients than server connections; the same texts and different ones, again and again.
func statementsOnManyConnections(database *sql.DB) {
	kept, err := database.Prepare("select $1::int * 3")
	check(err)
	defer kept.Close()
	atOnce(16, func(name int) {
		own, err := database.Prepare(fmt.Sprintf("select $1::int + %d", name))
		check(err)
		defer own.Close()
		for n := 0; n < 40; n++ {
			var found int
			check(kept.QueryRow(n).Scan(&found))
			same(3*n, found)
			check(own.QueryRow(n).Scan(&found))
			same(n+name, found)
			same(n+name, number(database, "select $1::int + $2::int", n, name))
			if n%7 == 0 {
				transaction, err := database.Begin()
				check(err)
				check(transaction.Stmt(kept).QueryRow(n).Scan(&found))
				same(3*n, found)
				rows, err := transaction.Query("select generate_series(1, $1::int)", 50)
				check(err)
				count := 0
				for rows.Next() {
					count++
				}
				same(50, count)
				check(transaction.Commit())
			}
		}
	})
}

func copying(database *sql.DB) {
	_, err := database.Exec("drop table if exists pq_wide; create table pq_wide (n int, t text)")
	check(err)
	transaction, err := database.Begin()
	check(err)
	copy, err := transaction.Prepare(pq.CopyIn("pq_wide", "n", "t"))
	check(err)
	for n := 0; n < 20000; n++ {
		_, err = copy.Exec(n, strings.Repeat("x", n%200))
		check(err)
	}
	_, err = copy.Exec()
	check(err)
	check(copy.Close())
	check(transaction.Commit())
	same(20000, number(database, "select count(*) from pq_wide"))
	transaction, err = database.Begin()
	check(err)
	copy, err = transaction.Prepare(pq.CopyIn("pq_wide", "n", "t"))
	check(err)
	_, err = copy.Exec("not a number", "x")
	check(err)
	_, err = copy.Exec()
	fails("22P02", err)
	check(transaction.Rollback())
	same(20000, number(database, "select count(*) from pq_wide"))
}

func cancelling(database *sql.DB) {
	limited, stop := context.WithTimeout(background, time.Second)
	defer stop()
	_, err := database.ExecContext(limited, "select pg_sleep(20)")
	fails("57014", err)
	same(1, number(database, "select 1"))
}

func settingsFollowTheirClient() {
	zones := []string{"Europe/Berlin", "Asia/Tokyo", "America/Lima", "UTC", "Africa/Cairo", "Asia/Kolkata", "Pacific/Apia", "Iran"}
	atOnce(8, func(n int) {
		// lib/pq passes what it does not know itself on to Postgres.
		database := open(fmt.Sprintf("application_name='client %d' timezone=%s statement_timeout=%d", n, zones[n], 9001+n))
		defer database.Close()
		database.SetMaxOpenConns(1)
		show := func(name string) (found string) {
			check(database.QueryRow("show " + name).Scan(&found))
			return
		}
		for round := 0; round < 25; round++ {
			same(zones[n], show("timezone"))
			same(fmt.Sprint("client ", n), show("application_name"))
			same(fmt.Sprintf("%dms", 9001+n), show("statement_timeout"))
			same("UTF8", show("client_encoding"))
		}
		_, err := database.Exec("set intervalstyle to 'iso_8601'")
		check(err)
		for round := 0; round < 10; round++ {
			same("iso_8601", show("intervalstyle"))
		}
	})
}

// What lives in the server's session: in transaction mode such a client keeps its server connection.
func sessionThings() {
	listener := pq.NewListener("sslmode=disable", time.Second, time.Minute, nil)
	defer listener.Close()
	check(listener.Listen("news"))
	database := open("")
	defer database.Close()
	_, err := database.Exec("select pg_notify('news', 'hello')")
	check(err)
	for {
		select {
		case note := <-listener.Notify:
			// nil tells that it has connected again.
			if note != nil {
				same("hello", note.Extra)
				return
			}
		case <-time.After(10 * time.Second):
			log.Fatal("no notification")
		}
	}
}
