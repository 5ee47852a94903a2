package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"sigs.k8s.io/yaml"

	"weft/internal/model"
)

// LoadConfig reads the configuration file, fills in defaults and checks it. A file that does not exist means
// all defaults; an unknown field is an error that names it.
func LoadConfig(path string) (model.Config, error) {
	var cfg model.Config
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return cfg, fmt.Errorf("read configuration: %w", err)
	default:
		if err := yaml.UnmarshalStrict(b, &cfg); err != nil {
			return cfg, fmt.Errorf("configuration %s: %w", path, err)
		}
	}
	cfg.SetDefaults()
	if cfg.NodeName == "" {
		cfg.NodeName = os.Getenv("NODE_NAME")
	}
	if cfg.NodeName == "" {
		h, err := os.Hostname()
		if err != nil {
			return cfg, fmt.Errorf("no nodeName in %s and none from the host: %w", path, err)
		}
		cfg.NodeName = strings.ToLower(h)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}
