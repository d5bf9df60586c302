package turnstone.spring;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.time.Clock;
import java.util.Arrays;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.dao.DataAccessException;
import org.springframework.http.HttpStatus;
import org.springframework.http.ResponseEntity;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.transaction.support.TransactionTemplate;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RequestHeader;
import org.springframework.web.bind.annotation.RestController;
import turnstone.CallbackInbox;
import turnstone.WebhookVerifier;

/** What Turnstone POSTs to. Tables: {@code schema.sql}. */
@RestController
public class CallbackController {
    private final WebhookVerifier verifier;
    private final CallbackInbox<JsonNode> inbox;
    private final TransactionTemplate transaction;
    private final ObjectMapper json = new ObjectMapper();

    /**
     * @param secrets {@code turnstone.secrets}: those that Turnstone may sign with, separated by commas
     */
    public CallbackController(
            @Value("${turnstone.secrets}") String[] secrets, JdbcTemplate jdbc, TransactionTemplate transaction) {
        this.verifier = new WebhookVerifier(Clock.systemUTC(), Arrays.asList(secrets));
        this.inbox = new CallbackInbox<>(new JdbcStore(jdbc, json), new UsageEffect(jdbc));
        this.transaction = transaction;
    }

    /** The headers are not required here, lest Spring answers 400, after which Turnstone gives the event up. */
    @PostMapping("/callbacks")
    public ResponseEntity<Void> receive(
            @RequestHeader(value = "webhook-id", required = false) String id,
            @RequestHeader(value = "webhook-timestamp", required = false) String timestamp,
            @RequestHeader(value = "webhook-signature", required = false) String signatures,
            @RequestBody byte[] body)
            throws IOException {
        if (!verifier.verify(id, timestamp, signatures, body)) {
            return ResponseEntity.status(HttpStatus.UNAUTHORIZED).build();
        }
        JsonNode event = json.readTree(body);
        try {
            transaction.execute(
                    status -> inbox.take(id, event.get("session_id").asText(), event.get("callback_seq").asLong(), event));
        } catch (DataAccessException databaseIsAway) {
            return ResponseEntity.status(HttpStatus.SERVICE_UNAVAILABLE).header("Retry-After", "5").build();
        }
        return ResponseEntity.noContent().build();
    }
}
