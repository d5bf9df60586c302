package turnstone.spring;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.List;
import org.springframework.jdbc.core.JdbcTemplate;
import turnstone.CallbackInbox;

/** The inbox's tables in PostgreSQL, in whatever transaction the caller has begun. */
public class JdbcStore implements CallbackInbox.Store<JsonNode> {
    private final JdbcTemplate jdbc;
    private final ObjectMapper json;

    public JdbcStore(JdbcTemplate jdbc, ObjectMapper json) {
        this.jdbc = jdbc;
        this.json = json;
    }

    @Override
    public long lock(String sessionId) {
        jdbc.update("INSERT INTO turnstone_sessions (session_id) VALUES (?) ON CONFLICT DO NOTHING", sessionId);
        return jdbc.queryForObject(
                "SELECT next_seq FROM turnstone_sessions WHERE session_id = ? FOR UPDATE", Long.class, sessionId);
    }

    @Override
    public boolean keep(String id, String sessionId, long seq, JsonNode event) {
        return 1 == jdbc.update(
                "INSERT INTO turnstone_events (id, session_id, callback_seq, body) VALUES (?, ?, ?, ?::jsonb)"
                        + " ON CONFLICT DO NOTHING",
                id, sessionId, seq, event.toString());
    }

    @Override
    public JsonNode kept(String sessionId, long seq) {
        List<String> found = jdbc.queryForList(
                "SELECT body::text FROM turnstone_events WHERE session_id = ? AND callback_seq = ?",
                String.class, sessionId, seq);
        try {
            return found.isEmpty() ? null : json.readTree(found.get(0));
        } catch (IOException notJson) {
            throw new UncheckedIOException(notJson);
        }
    }

    @Override
    public void next(String sessionId, long seq) {
        jdbc.update("UPDATE turnstone_sessions SET next_seq = ? WHERE session_id = ?", seq, sessionId);
    }
}
