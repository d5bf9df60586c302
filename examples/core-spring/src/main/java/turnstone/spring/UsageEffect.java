package turnstone.spring;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.function.Consumer;
import org.springframework.jdbc.core.JdbcTemplate;

/** Keeps what was used, and corrections of it, as lines to bill. The other types have their effects beside this one. */
public class UsageEffect implements Consumer<JsonNode> {
    private final JdbcTemplate jdbc;

    public UsageEffect(JdbcTemplate jdbc) {
        this.jdbc = jdbc;
    }

    @Override
    public void accept(JsonNode event) {
        String type = event.get("type").asText();
        if (type.equals("usage") || type.equals("usage_adjusted")) {
            jdbc.update(
                    "INSERT INTO turnstone_usage (session_id, callback_seq, exam_id, participant_id, purpose,"
                            + " prompt_tokens, completion_tokens, total_tokens, cached_tokens)"
                            + " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    event.get("session_id").asText(), event.get("callback_seq").asLong(),
                    event.get("exam_id").asLong(), event.get("participant_id").asLong(), event.get("purpose").asText(),
                    event.get("prompt_tokens").asLong(), event.get("completion_tokens").asLong(),
                    event.get("total_tokens").asLong(), event.get("cached_tokens").asLong());
        }
    }
}
