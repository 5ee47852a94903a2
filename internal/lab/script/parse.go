package script

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"weft/internal/lab"
	"weft/internal/netset"
)

// parseExpect reads a line "expect reachable SRC -> DST[:PORT][/PROTO] [family 4|6] [within 5s]", or with another word for how.
func parseExpect(namespace string, args []string) (lab.Expectation, error) {
	usage := errors.New("want: expect reachable|unreachable|refused|dropped SRC -> DST[:PORT][/PROTO] [family 4|6] [within 5s]")
	e := lab.Expectation{Namespace: namespace, Within: 5 * time.Second}
	if len(args) < 4 || args[2] != "->" || len(args)%2 != 0 {
		return e, usage
	}
	switch args[0] {
	case "reachable":
		e.Reachable = true
	case "unreachable":
	case "refused", "dropped":
		e.How = args[0]
	default:
		return e, usage
	}
	e.Source, e.Dest = args[1], args[3]
	for i := 4; i < len(args); i += 2 {
		switch v := args[i+1]; args[i] {
		case "within":
			d, err := time.ParseDuration(v)
			if err != nil || d <= 0 {
				return e, fmt.Errorf("within: %q is not a time such as 5s", v)
			}
			e.Within = d
		case "family":
			switch v {
			case "4":
				e.Family = netset.V4
			case "6":
				e.Family = netset.V6
			default:
				return e, fmt.Errorf("family: %q is not 4 or 6", v)
			}
		default:
			return e, usage
		}
	}
	return e, nil
}

// split cuts a line into words; single or double quotes hold a word together.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				words, in = append(words, word.String()), false
				word.Reset()
			}
		case c == '#' && !in:
			return words, nil
		default:
			in = true
			word.WriteRune(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%c is not closed", quote)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}
