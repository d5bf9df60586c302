package turnstone;

import java.util.function.Consumer;

/**
 * Takes each event once, and lets a session's events take effect in order. Needs nothing but the JDK.
 *
 * <p>What it knows is in a {@link Store}. The caller begins a transaction, calls {@link #take}, and commits; so event,
 * place and effect are kept together or not at all. Only then it answers 2xx.
 *
 * @param <E> an event as the effect wants it
 */
public final class CallbackInbox<E> {
    /** The receiver's tables. */
    public interface Store<E> {
        /** Locks the session until the transaction ends. Returns the number whose turn it is: 1 in a new session. */
        long lock(String sessionId);

        /** Keeps an event. Returns false where its id, or its number in the session, is there already. */
        boolean keep(String id, String sessionId, long seq, E event);

        /** The kept event with this number, or null. */
        E kept(String sessionId, long seq);

        /** Remembers whose turn it is. */
        void next(String sessionId, long seq);
    }

    /** What became of an event. Each is answered with 2xx. */
    public enum Outcome {
        /** It has taken effect, and so have those that waited for it. */
        APPLIED,
        /** It was taken before, and has changed nothing. */
        KNOWN,
        /** It is kept until an earlier one has come: now look into the feed. */
        WAITS
    }

    private final Store<E> store;
    private final Consumer<E> effect;

    /**
     * @param effect what an event does to the receiver's own tables, in the same transaction
     */
    public CallbackInbox(Store<E> store, Consumer<E> effect) {
        this.store = store;
        this.effect = effect;
    }

    /**
     * Takes an event that was received or read in the feed.
     *
     * @param id {@code webhook-id}; in the feed {@code id}
     * @param sessionId {@code session_id} of the body
     * @param seq {@code callback_seq} of the body
     */
    public Outcome take(String id, String sessionId, long seq, E event) {
        long next = store.lock(sessionId);
        if (!store.keep(id, sessionId, seq, event)) {
            return Outcome.KNOWN;
        }
        if (seq < next) {
            effect.accept(event); // came when it had been given up
            return Outcome.APPLIED;
        }
        return goOn(sessionId, next) > seq ? Outcome.APPLIED : Outcome.WAITS;
    }

    /**
     * Goes on behind a gap that will not be filled: the feed was read to its end, and has shown the event behind the gap
     * but none of those in it.
     *
     * @param behind number of the first event behind the gap
     */
    public void giveUp(String sessionId, long behind) {
        if (store.lock(sessionId) < behind) {
            goOn(sessionId, behind);
        }
    }

    private long goOn(String sessionId, long next) {
        long seq = next;
        for (E event = store.kept(sessionId, seq); event != null; event = store.kept(sessionId, seq)) {
            effect.accept(event);
            seq++;
        }
        store.next(sessionId, seq);
        return seq;
    }
}
