# ruby-pg: prepared statements by name, pipelines, COPY, cancel, single-row mode.

require "pg"
require_relative "checks"

SESSIONS = ENV["PGWEIR_MODE"] != "transaction"

def connected(**options)
  connection = PG.connect(**options)
  yield connection
ensure
  connection&.close
end

def at_once(count, &work)
  Array.new(count) { |number| Thread.new(number, &work).tap { |thread| thread.report_on_exception = false } }.each(&:join)
end

def simple_things
  connected do |connection|
    same "1", connection.exec("select 1").getvalue(0, 0)
    row = connection.exec_params(
      "select $1::int, $2::text, $3::bytea, $4::int[], $5::bool",
      [7, "sieben ä€😀", { value: "\0\1", format: 1 }, "{1,2,3}", nil]
    ).values.first
    same ["7", "sieben ä€😀", "\\x0001", "{1,2,3}", nil], row
    connection.type_map_for_results = PG::BasicTypeMapForResults.new(connection)
    same [7, [1, 2], true], connection.exec_params("select $1::int, '{1,2}'::int[], true", [7]).values.first
    same 300_000, connection.exec_params("select $1::text", ["x" * 300_000]).getvalue(0, 0).size
    connection.exec("drop table if exists ruby_items; create table ruby_items (n int primary key, t text)")
  end
end

def errors_and_transactions
  connected do |connection|
    3.times do
      fails(PG::DivisionByZero) { connection.exec("select 1/0") }
      fails(PG::SyntaxError) { connection.exec_params("selekt $1", [1]) }
      fails(PG::DivisionByZero) { connection.exec_params("select 1 / $1::int", [0]) }
      fails(PG::InvalidSqlStatementName) { connection.exec_prepared("nobody prepared this", []) }
    end
    connection.prepare("insert", "insert into ruby_items values ($1, $2)")
    fails(PG::DuplicatePstatement) { connection.prepare("insert", "select 1") }
    5.times do |n|
      connection.transaction do
        connection.exec_prepared("insert", [n, "x"])
        connection.exec("savepoint s")
        fails(PG::UniqueViolation) { connection.exec_prepared("insert", [n, "again"]) }
        fails(PG::InFailedSqlTransaction) { connection.exec_prepared("insert", [n + 100, "refused"]) }
        connection.exec("rollback to s")
      end
      same (n + 1).to_s, connection.exec("select count(*) from ruby_items").getvalue(0, 0)
    end
    begin
      connection.transaction do
        connection.exec_prepared("insert", [50, "undone"])
        raise KeyError
      end
    rescue KeyError
      same PG::PQTRANS_IDLE, connection.transaction_status
    end
    same "5", connection.exec("select count(*) from ruby_items").getvalue(0, 0)
    same 2, connection.describe_prepared("insert").nparams
    connection.exec("deallocate insert")
    fails(PG::InvalidSqlStatementName) { connection.exec_prepared("insert", [60, "x"]) }
  end
end

# More clients than server connections; the same names for other texts, again and again.
def statements_on_many_connections
  at_once(8) do |number|
    connected do |connection|
      connection.prepare("sum", "select $1::int + $2::int")
      connection.prepare("own", "select $1::int::text || ' of #{number}'")
      60.times do |n|
        same (n + number).to_s, connection.exec_prepared("sum", [n, number]).getvalue(0, 0)
        same "#{n} of #{number}", connection.exec_prepared("own", [n]).getvalue(0, 0)
        # As Active Record names its statements: a1, a2, ...
        connection.prepare("a#{n}", "select $1::int * #{n}")
        same (n * number).to_s, connection.exec_prepared("a#{n}", [number]).getvalue(0, 0)
        connection.exec("deallocate a#{n - 20}") if n >= 20
        next unless (n % 7).zero?

        connection.transaction do
          same "#{n} of #{number}", connection.exec_prepared("own", [n]).getvalue(0, 0)
          same n.to_s, connection.exec_params("select $1::int", [n]).getvalue(0, 0)
        end
      end
      connection.exec("deallocate all")
      connection.prepare("sum", "select 'another'")
      same "another", connection.exec_prepared("sum", []).getvalue(0, 0)
    end
  end
end

def pipelines
  connected do |connection|
    connection.prepare("divide", "select 100 / $1::int")
    connection.enter_pipeline_mode
    [5, 0, 4].each do |divisor|
      connection.send_query_prepared("divide", [divisor])
      connection.send_query_params("select $1::int", [divisor])
      connection.pipeline_sync
    end
    seen = []
    syncs = 0
    while syncs < 3
      result = connection.get_result or next
      case result.result_status
      when PG::PGRES_PIPELINE_SYNC then syncs += 1
      when PG::PGRES_TUPLES_OK then seen << result.getvalue(0, 0)
      when PG::PGRES_FATAL_ERROR then seen << result.error_field(PG::PG_DIAG_SQLSTATE)
      when PG::PGRES_PIPELINE_ABORTED then seen << "aborted"
      end
    end
    connection.exit_pipeline_mode
    same %w[20 5 22012 aborted 25 4], seen
    same "10", connection.exec_prepared("divide", [10]).getvalue(0, 0)
  end
end

def rows_one_by_one
  connected do |connection|
    connection.send_query_params("select generate_series(1, $1::int)", [5000])
    connection.set_single_row_mode
    count = 0
    connection.get_result.stream_each_row { count += 1 }
    same 5000, count
    connection.get_result
    connection.transaction do
      connection.exec("declare c cursor for select generate_series(1, 100)")
      same 60, connection.exec("fetch 60 from c").ntuples
      same 40, connection.exec("fetch 60 from c").ntuples
    end
  end
end

def copying
  connected do |connection|
    connection.exec("drop table if exists ruby_wide; create table ruby_wide (n int, t text)")
    connection.copy_data("copy ruby_wide from stdin") do
      20_000.times { |n| connection.put_copy_data("#{n}\t#{"x" * (n % 200)}\n") }
    end
    count = 0
    connection.copy_data("copy (select n from ruby_wide order by n) to stdout") do
      while (line = connection.get_copy_data)
        same "#{count}\n", line
        count += 1
      end
    end
    same 20_000, count
    fails(PG::InvalidTextRepresentation) do
      connection.copy_data("copy ruby_wide from stdin") { connection.put_copy_data("not a number\tx\n") }
    end
    fails(RuntimeError) do
      connection.copy_data("copy ruby_wide from stdin") { raise "changed my mind" }
    end
    same "20000", connection.exec("select count(*) from ruby_wide").getvalue(0, 0)
  end
end

def cancelling
  connected do |connection|
    thread = Thread.new { sleep 1; connection.cancel }
    fails(PG::QueryCanceled) { connection.exec("select pg_sleep(20)") }
    thread.join
    same "alive", connection.exec("select 'alive'").getvalue(0, 0)
  end
end

def settings_follow_their_client
  zones = %w[Europe/Berlin Asia/Tokyo America/Lima UTC Africa/Cairo Asia/Kolkata Pacific/Apia Iran]
  at_once(8) do |number|
    options = { application_name: "client #{number}", options: "-c timezone=#{zones[number]} -c statement_timeout=#{9001 + number}" }
    connected(**options) do |connection|
      show = ->(name) { connection.exec("show #{name}").getvalue(0, 0) }
      same zones[number], connection.parameter_status("TimeZone")
      25.times do
        same zones[number], show["timezone"]
        same "client #{number}", show["application_name"]
        same "#{9001 + number}ms", show["statement_timeout"]
      end
      connection.set_client_encoding("LATIN1")
      connection.exec("set datestyle to 'German'")
      10.times do
        same "German, DMY", show["datestyle"]
        same "LATIN1", show["client_encoding"]
        same "\xFC".b, connection.exec("select chr(252)").getvalue(0, 0).b
      end
    end
  end
end

# What lives in the server's session: in transaction mode such a client keeps its server connection.
def session_things
  connected do |connection|
    connected do |other|
      connection.exec("listen news")
      other.exec("select pg_notify('news', 'hello')")
      heard = nil
      connection.wait_for_notify(10) { |*note| heard = note }
      same %w[news hello], heard.values_at(0, 2)
      same other.backend_pid, heard[1] if SESSIONS
      connection.exec("create temp table mine as select 1 as n")
      same "1", connection.exec("select n from mine").getvalue(0, 0)
    end
  end
end

simple_things
errors_and_transactions
statements_on_many_connections
pipelines
rows_one_by_one
copying
cancelling
settings_follow_their_client
session_things
