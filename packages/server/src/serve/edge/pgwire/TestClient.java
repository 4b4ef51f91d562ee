import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.sql.*;
import java.util.Arrays;
import java.util.Properties;

/** pgjdbc against the edge: metadata, prepared statements in both formats, cursors by fetch size, batches, savepoints, COPY. */
public class TestClient {
  static void check(boolean ok, String what) {
    if (!ok) throw new AssertionError(what);
  }

  static int rows(ResultSet result) throws SQLException {
    int rows = 0;
    while (result.next()) rows++;
    result.close();
    return rows;
  }

  public static void main(String[] args) throws Exception {
    boolean mapped = args[3].equals("mapped");
    Properties login = new Properties();
    login.put("user", args[1]);
    login.put("password", args[2]);
    try (Connection c = DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + args[0] + "/db", login)) {
      DatabaseMetaData m = c.getMetaData();
      check(m.getUserName().equals(args[1]) && c.getSchema().equals("public"), "who and where");
      check(rows(m.getTables(null, "public", "items", new String[] {"TABLE", "PARTITIONED TABLE"})) == 1, "getTables");
      check(rows(m.getTables(null, "public", "plain", null)) == (mapped ? 1 : 0), "getTables of what is not granted");
      check(rows(m.getColumns(null, "public", "items", "%")) == 5, "getColumns");
      check(rows(m.getPrimaryKeys(null, "public", "items")) == 2, "getPrimaryKeys");
      check(rows(m.getIndexInfo(null, "public", "items", false, false)) == 2, "getIndexInfo");
      check(rows(m.getTypeInfo()) > 50 && rows(m.getSchemas()) > 1 && rows(m.getCatalogs()) > 0, "types, schemas, catalogs");
      rows(m.getImportedKeys(null, "public", "items"));
      rows(m.getCrossReference(null, null, "items", null, null, "plain"));
      rows(m.getTablePrivileges(null, "public", "items"));
      rows(m.getProcedures(null, "public", "%"));
      rows(m.getFunctions(null, "public", "%"));
      rows(m.getUDTs(null, null, "%", null));
      rows(m.getBestRowIdentifier(null, "public", "items", 1, true));
      // Binary after the fifth execution.
      try (PreparedStatement s = c.prepareStatement("select id, label, price, day from items where id = ? and price < ?")) {
        for (int i = 0; i < 10; i++) {
          s.setInt(1, i * 300);
          s.setBigDecimal(2, new BigDecimal("1000"));
          ResultSet r = s.executeQuery();
          check(r.next() && r.getInt(1) == i * 300, "prepared " + i);
          check(r.getBigDecimal(3).compareTo(new BigDecimal(i * 75)) == 0, "numeric " + i);
          r.close();
        }
      }
      c.setAutoCommit(false);
      Statement s = c.createStatement(), t = c.createStatement();
      s.setFetchSize(10);
      t.setFetchSize(10);
      ResultSet up = s.executeQuery("select id from items order by id limit 50");
      ResultSet down = t.executeQuery("select id from items order by id desc limit 50");
      for (int i = 0; i < 50; i++) check(up.next() && down.next() && up.getInt(1) + down.getInt(1) == 2999, "two portals " + i);
      check(!up.next() && !down.next(), "their ends");
      c.commit();
      try (PreparedStatement b = c.prepareStatement("update items set label = ? where id = ?")) {
        for (int i = 0; i < 20; i++) {
          b.setString(1, "b");
          b.setInt(2, i);
          b.addBatch();
        }
        check(Arrays.stream(b.executeBatch()).sum() == 20, "batch");
      }
      c.rollback();
      t.executeUpdate("update items set label = 'sp' where id = 1");
      Savepoint savepoint = c.setSavepoint();
      try {
        t.executeQuery("select nope from items");
        check(false, "a column that is not there");
      } catch (SQLException e) {
        check(e.getSQLState().equals("42703"), e.getSQLState());
      }
      c.rollback(savepoint);
      ResultSet kept = t.executeQuery("select label from items where id = 1");
      check(kept.next() && kept.getString(1).equals("sp"), "savepoint");
      c.rollback();
      c.setAutoCommit(true);
      org.postgresql.copy.CopyManager copy = ((org.postgresql.PGConnection) c).getCopyAPI();
      StringWriter out = new StringWriter();
      check(copy.copyOut("COPY (select id, label from items where id < 3 order by id) TO STDOUT WITH (FORMAT csv, HEADER)", out) == 3, "copy out");
      check(out.toString().equals("id,label\n0,label 0\n1,label 1\n2,label 2\n"), out.toString());
      check(copy.copyIn("COPY items (id, k, label) FROM STDIN WITH (FORMAT csv)", new StringReader("9100,9100,\"a,b\"\n9101,1,c\n")) == 2, "copy in");
      check(c.createStatement().executeUpdate("delete from items where id in (9100, 9101)") == 2, "delete");
      Statement slow = c.createStatement();
      slow.setQueryTimeout(1);
      try {
        slow.executeQuery("select count(*) from items a, items b, items d, items e");
        check(false, "a timeout");
      } catch (SQLException e) {
        check(e.getSQLState().equals("57014"), e.getSQLState());
      }
      check(rows(c.createStatement().executeQuery("select 1 from items limit 1")) == 1, "after the timeout");
    }
    System.out.println("ok");
  }
}
