// Command weft is the node agent, the command line and the lab in one binary:
// `weft agent` is the daemon, everything else talks to it or runs labs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"weft/internal/cli"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev" //nolint:gochecknoglobals // the linker writes it

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := cli.Root(version).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "weft: "+err.Error())
		os.Exit(cli.ExitCode(err))
	}
}
