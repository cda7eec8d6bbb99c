import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Types;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.Properties;
import java.util.TimeZone;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/** pgjdbc: statements prepared at their fifth use (its default) and at the first, batches, cursors, COPY, cancel. */
public class WithPgjdbc {
  static final boolean SESSIONS = !System.getenv("PGWEIR_MODE").equals("transaction");
  static Properties preparing = new Properties();

  interface Work {
    void run(int number) throws Exception;
  }

  public static void main(String[] arguments) {
    try {
      everything();
    } catch (Throwable failure) {
      failure.printStackTrace();
      // Other threads may be at work.
      System.exit(1);
    }
  }

  static void everything() throws Exception {
    for (String threshold : new String[] {"5", "1", "-1"}) {
      preparing.clear();
      preparing.setProperty("prepareThreshold", threshold);
      simpleThings();
      errorsAndTransactions();
      statementsOnManyConnections();
      statementsAfterChanges();
      batches();
      cursors();
      copying();
    }
    preparing.clear();
    cancelling();
    settingsFollowTheirClient();
    readOnly();
    sessionThings();
  }

  static Connection connect(String... options) throws SQLException {
    Properties properties = new Properties();
    properties.putAll(preparing);
    properties.setProperty("user", System.getenv("PGUSER"));
    properties.setProperty("password", System.getenv("PGPASSWORD"));
    for (int n = 0; n < options.length; n += 2) {
      properties.setProperty(options[n], options[n + 1]);
    }
    String place = System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
    return DriverManager.getConnection("jdbc:postgresql://" + place, properties);
  }

  static void same(Object expected, Object found) {
    if (!Objects.equals(expected, found)) {
      throw new AssertionError("expected " + expected + ", found " + found);
    }
  }

  static void fails(String state, Callable<?> work) throws Exception {
    try {
      work.call();
    } catch (SQLException error) {
      same(state, error.getSQLState());
      return;
    }
    throw new AssertionError("no error " + state);
  }

  static void atOnce(int count, Work work) throws Exception {
    ExecutorService threads = Executors.newFixedThreadPool(count);
    List<Future<?>> futures = new ArrayList<>();
    for (int n = 0; n < count; n++) {
      int number = n;
      futures.add(threads.submit(() -> {
        work.run(number);
        return null;
      }));
    }
    for (Future<?> future : futures) {
      future.get();
    }
    threads.shutdown();
  }

  static Object value(Connection connection, String sql, Object... values) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(sql)) {
      for (int n = 0; n < values.length; n++) {
        statement.setObject(n + 1, values[n]);
      }
      try (ResultSet rows = statement.executeQuery()) {
        rows.next();
        return rows.getObject(1);
      }
    }
  }

  static void execute(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
    }
  }

  static void simpleThings() throws Exception {
    try (Connection connection = connect()) {
      for (int n = 0; n < 8; n++) {
        try (PreparedStatement statement = connection.prepareStatement(
            "select ?::int, ?::text, ?::timestamptz, ?::numeric, ?::bytea, ?::int[], ?::bool")) {
          statement.setInt(1, 7);
          statement.setString(2, "sieben ä€😀");
          statement.setObject(3, OffsetDateTime.parse("2024-02-29T12:00:00Z"));
          statement.setBigDecimal(4, new BigDecimal("1.50"));
          statement.setBytes(5, new byte[] {0, 1, 2});
          statement.setArray(6, connection.createArrayOf("int4", new Object[] {1, 2, 3}));
          statement.setNull(7, Types.BOOLEAN);
          ResultSet rows = statement.executeQuery();
          rows.next();
          same(7, rows.getInt(1));
          same("sieben ä€😀", rows.getString(2));
          same(OffsetDateTime.parse("2024-02-29T12:00:00Z").toInstant(), rows.getObject(3, OffsetDateTime.class).toInstant());
          same(new BigDecimal("1.50"), rows.getBigDecimal(4));
          same(3, rows.getBytes(5).length);
          same(3, ((Object[]) rows.getArray(6).getArray()).length);
          same(null, rows.getObject(7));
        }
      }
      try (Statement statement = connection.createStatement()) {
        same(true, statement.execute("select 1; select 2"));
        same(true, statement.getMoreResults());
      }
      execute(connection, "drop table if exists java_items; create table java_items (id serial primary key, n int unique, t text)");
      same("x".repeat(300000), value(connection, "select ?::text", "x".repeat(300000)));
      same(true, connection.isValid(5));
      same(true, connection.getMetaData().getTables(null, null, "java_items", null).next());
    }
  }

  static void errorsAndTransactions() throws Exception {
    try (Connection connection = connect()) {
      for (int n = 0; n < 7; n++) {
        fails("22012", () -> value(connection, "select 1/0"));
        fails("42601", () -> value(connection, "selekt"));
        fails("22012", () -> value(connection, "select 1 / ?::int", 0));
      }
      connection.setAutoCommit(false);
      for (int n = 0; n < 7; n++) {
        int number = n;
        same(n, value(connection, "insert into java_items (n) values (?) returning n", n));
        var savepoint = connection.setSavepoint();
        fails("23505", () -> value(connection, "insert into java_items (n) values (?) returning n", number));
        connection.rollback(savepoint);
        connection.commit();
        same(n + 1L, value(connection, "select count(*) from java_items"));
        connection.rollback();
      }
      fails("22012", () -> value(connection, "select 1 / ?::int", 0));
      fails("25P02", () -> value(connection, "select ?::int", 1));
      connection.rollback();
      connection.setAutoCommit(true);
      connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
      same(7L, value(connection, "select count(*) from java_items"));
    }
  }

  /** More clients than server connections; the same texts and different ones, again and again. */
  static void statementsOnManyConnections() throws Exception {
    atOnce(8, number -> {
      try (Connection connection = connect();
          PreparedStatement sum = connection.prepareStatement("select ?::int + ?::int");
          PreparedStatement own = connection.prepareStatement("select ?::text || ' of " + number + "'")) {
        for (int n = 0; n < 60; n++) {
          sum.setInt(1, n);
          sum.setInt(2, number);
          try (ResultSet rows = sum.executeQuery()) {
            rows.next();
            same(n + number, rows.getInt(1));
          }
          own.setString(1, "" + n);
          try (ResultSet rows = own.executeQuery()) {
            rows.next();
            same(n + " of " + number, rows.getString(1));
          }
          if (n % 7 == 0) {
            connection.setAutoCommit(false);
            same(2 * n, value(connection, "select ?::int * 2", n));
            connection.commit();
            connection.setAutoCommit(true);
          }
          if (n % 11 == 0) {
            fails("22012", () -> value(connection, "select 1 / ?::int", 0));
          }
        }
        // More statements than pgjdbc caches: it closes the oldest.
        for (int n = 0; n < 300; n++) {
          same(number + n, value(connection, "select ?::int + " + n, number));
        }
      }
    });
  }

  static void statementsAfterChanges() throws Exception {
    try (Connection connection = connect()) {
      execute(connection, "drop table if exists java_changing");
      execute(connection, "create table java_changing (n int)");
      for (int n = 0; n < 8; n++) {
        try (PreparedStatement statement = connection.prepareStatement("insert into java_changing (n) values (?)")) {
          statement.setInt(1, n);
          same(1, statement.executeUpdate());
        }
        same(n + 1L, value(connection, "select count(*) from java_changing where n >= ?", 0));
      }
      execute(connection, "alter table java_changing alter n type bigint");
      same(7L, value(connection, "select max(n) from java_changing where n >= ?", 0));
      execute(connection, "deallocate all");
      same(8L, value(connection, "select count(*) from java_changing where n >= ?", 0));
      execute(connection, "discard all");
      same(8L, value(connection, "select count(*) from java_changing where n >= ?", 0));
    }
    // What drops statements is a prepared statement itself, under a name from the first execution on.
    for (String drops : new String[] {"deallocate all", "discard all"}) {
      try (Connection connection = connect("prepareThreshold", "1")) {
        for (int n = 0; n < 5; n++) {
          same(n, value(connection, "select ?::int", n));
          try (PreparedStatement statement = connection.prepareStatement(drops)) {
            statement.execute();
          }
          same(n + 1L, value(connection, "select ?::bigint + 1", n));
        }
      }
    }
    try (Connection connection = connect("prepareThreshold", "1")) {
      for (int n = 0; n < 5; n++) {
        execute(connection, "prepare java_own as select 'own'");
        same("own", value(connection, "execute java_own"));
        try (PreparedStatement statement = connection.prepareStatement("deallocate java_own")) {
          statement.execute();
        }
        fails("26000", () -> value(connection, "execute java_own"));
      }
    }
  }

  static void batches() throws Exception {
    for (String rewrite : new String[] {"false", "true"}) {
      try (Connection connection = connect("reWriteBatchedInserts", rewrite)) {
        execute(connection, "truncate java_items");
        connection.setAutoCommit(false);
        try (PreparedStatement insert =
            connection.prepareStatement("insert into java_items (n, t) values (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
          for (int n = 0; n < 3000; n++) {
            insert.setInt(1, n);
            insert.setString(2, "x".repeat(n % 100));
            insert.addBatch();
          }
          same(3000, insert.executeBatch().length);
          int keys = 0;
          for (ResultSet rows = insert.getGeneratedKeys(); rows.next();) {
            keys++;
          }
          same(3000, keys);
          connection.commit();
          for (int n = 2995; n < 3005; n++) {
            insert.setInt(1, n);
            insert.setString(2, "again");
            insert.addBatch();
          }
          try {
            insert.executeBatch();
            throw new AssertionError("no error");
          } catch (BatchUpdateException error) {
            same("23505", error.getSQLState());
          }
          connection.rollback();
        }
        same(3000L, value(connection, "select count(*) from java_items"));
        connection.commit();
      }
    }
  }

  static void cursors() throws Exception {
    atOnce(8, number -> {
      try (Connection connection = connect()) {
        connection.setAutoCommit(false);
        for (int round = 0; round < 7; round++) {
          try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, ?::int) as n")) {
            statement.setFetchSize(100);
            statement.setInt(1, 1000);
            int count = 0;
            try (ResultSet rows = statement.executeQuery()) {
              while (rows.next()) {
                same(++count, rows.getInt(1));
              }
            }
            same(1000, count);
            try (ResultSet rows = statement.executeQuery()) {
              rows.next();
            }
          }
          connection.commit();
        }
      }
    });
  }

  static void copying() throws Exception {
    try (Connection connection = connect()) {
      execute(connection, "drop table if exists java_wide; create table java_wide (n int, t text)");
      CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
      StringBuilder lines = new StringBuilder();
      for (int n = 0; n < 20000; n++) {
        lines.append(n).append('\t').append("x".repeat(n % 200)).append('\n');
      }
      same(20000L, copy.copyIn("copy java_wide from stdin", new StringReader(lines.toString())));
      StringWriter out = new StringWriter();
      same(20000L, copy.copyOut("copy (select n, t from java_wide order by n) to stdout", out));
      same(lines.toString(), out.toString());
      fails("22P02", () -> copy.copyIn("copy java_wide from stdin", new StringReader("1\tx\nnot a number\tx\n")));
      var given = copy.copyIn("copy java_wide from stdin");
      given.writeToCopy("1\tx\n".getBytes(), 0, 4);
      given.cancelCopy();
      same(20000L, value(connection, "select count(*) from java_wide"));
    }
  }

  static void cancelling() throws Exception {
    try (Connection connection = connect(); Statement statement = connection.createStatement()) {
      statement.setQueryTimeout(1);
      fails("57014", () -> statement.execute("select pg_sleep(20)"));
      same("alive", value(connection, "select 'alive'"));
      statement.setQueryTimeout(0);
      Thread canceller = new Thread(() -> {
        try {
          Thread.sleep(1000);
          statement.cancel();
        } catch (Exception error) {
          throw new RuntimeException(error);
        }
      });
      canceller.start();
      fails("57014", () -> statement.execute("select pg_sleep(20)"));
      canceller.join();
      same("alive", value(connection, "select 'alive'"));
    }
  }

  static void settingsFollowTheirClient() throws Exception {
    // pgjdbc sends the time zone of its process when it connects.
    String zone = TimeZone.getDefault().getID();
    String[] orders = {"ISO, MDY", "ISO, DMY", "ISO, YMD"};
    atOnce(8, number -> {
      try (Connection connection = connect(
          "ApplicationName", "client " + number, "options", "-c statement_timeout=" + (9001 + number))) {
        for (int n = 0; n < 25; n++) {
          same("client " + number, value(connection, "show application_name"));
          same((9001 + number) + "ms", value(connection, "show statement_timeout"));
          same(zone, value(connection, "show timezone"));
          same("UTF8", value(connection, "show client_encoding"));
        }
        execute(connection, "set datestyle to '" + orders[number % 3] + "'");
        connection.setClientInfo("ApplicationName", "renamed " + number);
        for (int n = 0; n < 25; n++) {
          same(orders[number % 3], value(connection, "show datestyle"));
          same("renamed " + number, value(connection, "show application_name"));
        }
      }
    });
  }

  static void readOnly() throws Exception {
    try (Connection connection = connect(); Connection other = connect()) {
      connection.setReadOnly(true);
      connection.setAutoCommit(false);
      fails("25006", () -> value(connection, "insert into java_items (n) values (?) returning n", 90000));
      connection.rollback();
      same("on", value(connection, "show transaction_read_only"));
      connection.rollback();
      same("off", value(other, "show transaction_read_only"));
      connection.setReadOnly(false);
      same(90000, value(connection, "insert into java_items (n) values (?) returning n", 90000));
      connection.rollback();
    }
    // Outside transactions it is default_transaction_read_only, which Postgres reports from 14 on.
    try (Connection connection = connect("readOnlyMode", "always"); Connection other = connect()) {
      connection.setReadOnly(true);
      for (int n = 0; n < 7; n++) {
        fails("25006", () -> value(connection, "insert into java_items (n) values (?) returning n", 90000));
        same("off", value(other, "show transaction_read_only"));
      }
      connection.setReadOnly(false);
      same("off", value(connection, "show transaction_read_only"));
    }
  }

  /** What lives in the server's session: in transaction mode such a client keeps its server connection. */
  static void sessionThings() throws Exception {
    try (Connection connection = connect(); Connection other = connect()) {
      execute(connection, "listen news");
      execute(other, "notify news, 'hello'");
      PGNotification[] notes = connection.unwrap(PGConnection.class).getNotifications(10000);
      same("hello", notes[0].getParameter());
      if (SESSIONS) {
        same(other.unwrap(PGConnection.class).getBackendPID(), notes[0].getPID());
      }
      execute(connection, "create temp table mine as select 1 as n");
      same(1, value(connection, "select n from mine"));
    }
  }
}
