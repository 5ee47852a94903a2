package cli

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"weft/internal/lab"
)

// labDemo shows weft at work; `make demo` builds and runs it.
func labDemo() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Bring up three nodes, run pods and show what reaches what",
		Long: `Brings up a lab named demo with three nodes, runs pods on it and tries every way that a packet
can take, in both families. The lab stays up to look around in; running it again uses it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.Demo(cmd.Context(), cmd.OutOrStdout(), selfName())
		},
	}
}

// selfName is how the user called this program, as far as it can be told.
func selfName() string {
	exe, err := os.Executable()
	if err != nil {
		return "weft"
	}
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, exe); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return "weft"
}
