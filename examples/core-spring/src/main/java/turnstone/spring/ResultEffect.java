package turnstone.spring;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.function.Consumer;
import org.springframework.jdbc.core.JdbcTemplate;

/**
 * Keeps what a submission came to. The highest revision counts, so a replay of a lower one changes nothing. A result
 * that is PENDING_REVIEW has no total: it is stored as null, which is not 0, and a later revision brings one.
 */
public class ResultEffect implements Consumer<JsonNode> {
    private final JdbcTemplate jdbc;

    public ResultEffect(JdbcTemplate jdbc) {
        this.jdbc = jdbc;
    }

    @Override
    public void accept(JsonNode event) {
        if (!event.get("type").asText().equals("final_scores")) {
            return;
        }
        JsonNode scores = event.get("final_scores");
        JsonNode total = scores.get("total_score");
        JsonNode grade = scores.get("grade");
        jdbc.update(
                "INSERT INTO turnstone_results AS known (submission_id, revision, status, total, grade, body)"
                        + " VALUES (?, ?, ?, ?, ?, ?::jsonb) ON CONFLICT (submission_id) DO UPDATE"
                        + " SET revision = excluded.revision, status = excluded.status, total = excluded.total,"
                        + " grade = excluded.grade, body = excluded.body WHERE excluded.revision > known.revision",
                event.get("submission_id").asText(), event.get("revision").asInt(), scores.get("status").asText(),
                total.isNull() ? null : total.asDouble(), grade.isNull() ? null : grade.asText(), event.toString());
    }
}
