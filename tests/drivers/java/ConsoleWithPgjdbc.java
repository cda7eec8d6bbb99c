// pgjdbc on the console: what it sends at connect, then tables by both protocols.

import java.sql.*;

public class ConsoleWithPgjdbc {
    static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    static void reads(String options) throws SQLException {
        String url = "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE")
            + "?user=" + System.getenv("PGUSER") + options;
        try (Connection connection = DriverManager.getConnection(url)) {
            check(connection.isValid(5), "valid");
            try (ResultSet rows = connection.createStatement().executeQuery("SHOW POOLS")) {
                boolean found = false;
                while (rows.next()) {
                    if (rows.getString("database").equals("pgbouncer")) found = rows.getInt("cl_active") >= 1;
                }
                check(found, "the console's own pool");
            }
            connection.setAutoCommit(false);
            String sql = "SELECT database, count(*) AS n FROM pools WHERE user = ? AND cl_active >= ? GROUP BY database";
            for (int round = 0; round < 8; round++) { // after five it prepares the statement
                try (PreparedStatement statement = connection.prepareStatement(sql)) {
                    statement.setString(1, "pgbouncer");
                    statement.setInt(2, 1);
                    try (ResultSet rows = statement.executeQuery()) {
                        check(rows.next() && rows.getLong("n") == 1, "one row");
                    }
                }
            }
            connection.commit();
            connection.setAutoCommit(true);
            try (ResultSet rows = connection.createStatement().executeQuery("SHOW STATS_TOTALS")) {
                while (rows.next()) check(rows.getBigDecimal("query_count").signum() >= 0, "a count");
            }
            try {
                connection.createStatement().executeQuery("SHOW NONSENSE");
                check(false, "it was accepted");
            } catch (SQLException error) {
                check(error.getSQLState().equals("08P01"), error.getSQLState());
            }
        }
    }

    public static void main(String[] arguments) throws SQLException {
        reads("");
        reads("&preferQueryMode=simple");
        reads("&ApplicationName=report&assumeMinServerVersion=9.0");
    }
}
