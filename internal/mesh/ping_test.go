package mesh

import (
	"context"
	"testing"
	"time"

	"weft/internal/testkit"
)

// TestPing: an agent answers whoever asks, soon, and silence is an error at the end of the context; stray answers are not measured.
func TestPing(t *testing.T) {
	eachFamily(t, func(t *testing.T, families string) {
		r := newRig(t, families, 1500, 1500)
		stop := r.start(t, r.nodes[0])
		r.start(t, r.nodes[1])
		r.expect(t, "start", 5*time.Second, 0, 1500, 1500)
		ask := func() (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			err := r.nodes[1].mesh.Ping(ctx, r.nodes[0].name)
			return time.Since(began), err
		}
		if took, err := ask(); err != nil {
			t.Error(err)
		} else {
			testkit.Promised(t, "answer", took, 100*time.Millisecond)
		}
		stop()
		if took, err := ask(); err == nil || took < time.Second {
			t.Errorf("silence: %v after %s", err, took)
		}
		if err := r.nodes[1].mesh.Ping(canceled(t), "nobody"); err == nil {
			t.Error("nobody answered")
		}
		if n := len(r.nodes[1].mesh.pings); n > 0 {
			t.Errorf("%d pings are still waited for", n)
		}
	})
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
