package turnstone;

import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Clock;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

/** Tells whether a callback is Turnstone's: Standard Webhooks, HMAC-SHA256. Needs nothing but the JDK; thread-safe. */
public final class WebhookVerifier {
    private static final Duration TOLERANCE = Duration.ofMinutes(5);
    private static final String PREFIX = "whsec_";

    private final Clock clock;
    private final List<SecretKeySpec> keys = new ArrayList<>();

    /**
     * @param secrets {@code whsec_…} and base64; two while they are changed
     * @throws IllegalArgumentException if there is none, or one is not base64 or empty
     */
    public WebhookVerifier(Clock clock, List<String> secrets) {
        if (secrets.isEmpty()) {
            throw new IllegalArgumentException("no secret, so nothing would ever be accepted");
        }
        this.clock = clock;
        for (String secret : secrets) {
            String encoded = secret.startsWith(PREFIX) ? secret.substring(PREFIX.length()) : secret;
            keys.add(new SecretKeySpec(Base64.getDecoder().decode(encoded), "HmacSHA256"));
        }
    }

    /**
     * Whether one of the signatures fits the body as it came, and was made less than five minutes ago.
     *
     * @param id header {@code webhook-id}; this and the other two may be null
     * @param timestamp header {@code webhook-timestamp}, seconds since 1970
     * @param signatures header {@code webhook-signature}: {@code v1,<base64>}, or several separated by spaces
     * @param body the raw bytes: parsed and written again they are others
     */
    public boolean verify(String id, String timestamp, String signatures, byte[] body) {
        if (id == null || timestamp == null || signatures == null || !timestamp.matches("[0-9]{1,12}")) {
            return false;
        }
        long off = clock.instant().getEpochSecond() - Long.parseLong(timestamp);
        if (Math.abs(off) > TOLERANCE.getSeconds()) {
            return false;
        }
        byte[] head = (id + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8);
        for (SecretKeySpec key : keys) {
            byte[] expected = mac(key, head, body);
            for (String signature : signatures.split(" ")) {
                if (signature.startsWith("v1,") && fits(expected, signature.substring(3))) {
                    return true;
                }
            }
        }
        return false;
    }

    private static boolean fits(byte[] expected, String encoded) {
        try {
            return MessageDigest.isEqual(expected, Base64.getDecoder().decode(encoded)); // in constant time
        } catch (IllegalArgumentException notBase64) {
            return false;
        }
    }

    private static byte[] mac(SecretKeySpec key, byte[] head, byte[] body) {
        try {
            Mac mac = Mac.getInstance("HmacSHA256");
            mac.init(key);
            mac.update(head);
            return mac.doFinal(body);
        } catch (GeneralSecurityException impossible) {
            throw new IllegalStateException("every JDK has HmacSHA256", impossible);
        }
    }
}
