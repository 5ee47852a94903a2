package script

import (
	"strings"
	"testing"

	"weft/internal/netset"
)

func TestParseExpect(t *testing.T) {
	e, err := parseExpect("default", []string{"unreachable", "a", "->", "b:80", "family", "6", "within", "2s"})
	if err != nil || e.Reachable || e.Source != "a" || e.Dest != "b:80" || e.Family != netset.V6 || e.Within.Seconds() != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = parseExpect("default", []string{"refused", "a", "->", "b:80"})
	if err != nil || e.Reachable || e.How != "refused" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{
		"", "reachable a b", "maybe a -> b", "reachable a -> b within", "reachable a -> b within x",
		"reachable a -> b family 5", "reachable a -> b soon 1s", "reachable a -> b within -1s",
	} {
		if _, err := parseExpect("default", strings.Fields(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestSplitWords(t *testing.T) {
	got, err := split(`exec a -- sh -c 'echo "x y"' "" # comment`)
	if want := []string{"exec", "a", "--", "sh", "-c", `echo "x y"`, ""}; err != nil || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := split("a 'b"); err == nil {
		t.Error("an open quote was accepted")
	}
}
