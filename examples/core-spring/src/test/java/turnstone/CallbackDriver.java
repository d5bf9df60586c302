package turnstone;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.time.Clock;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Takes callbacks from standard input and says what became of each. The arguments are the secrets. A line has, separated
 * by tabs, id, timestamp, signatures, session, number and the body in base64; or {@code give-up}, session and number.
 */
public final class CallbackDriver {
    /** Tables in memory: for trying out, since what a process has forgotten is taken twice. */
    static final class MemoryStore implements CallbackInbox.Store<String> {
        private final Set<String> ids = new HashSet<>();
        private final Map<String, Map<Long, String>> events = new HashMap<>();
        private final Map<String, Long> turns = new HashMap<>();

        @Override
        public long lock(String sessionId) {
            return turns.getOrDefault(sessionId, 1L);
        }

        @Override
        public boolean keep(String id, String sessionId, long seq, String event) {
            Map<Long, String> ofSession = events.computeIfAbsent(sessionId, unknown -> new HashMap<>());
            return !ofSession.containsKey(seq) && ids.add(id) && ofSession.put(seq, event) == null;
        }

        @Override
        public String kept(String sessionId, long seq) {
            return events.getOrDefault(sessionId, Map.of()).get(seq);
        }

        @Override
        public void next(String sessionId, long seq) {
            turns.put(sessionId, seq);
        }
    }

    private CallbackDriver() {}

    public static void main(String[] secrets) throws IOException {
        WebhookVerifier verifier = new WebhookVerifier(Clock.systemUTC(), Arrays.asList(secrets));
        List<String> effects = new ArrayList<>();
        CallbackInbox<String> inbox = new CallbackInbox<>(new MemoryStore(), effects::add);
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] part = line.split("\t", -1);
            effects.clear();
            String outcome = "GIVEN_UP";
            if (part[0].equals("give-up")) {
                inbox.giveUp(part[1], Long.parseLong(part[2]));
            } else if (verifier.verify(part[0], part[1], part[2], Base64.getDecoder().decode(part[5]))) {
                outcome = inbox.take(part[0], part[3], Long.parseLong(part[4]), part[4]).name();
            } else {
                outcome = "REFUSED";
            }
            System.out.println((outcome + " " + String.join(",", effects)).trim());
        }
    }
}
