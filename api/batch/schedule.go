package batch

import (
	"fmt"
	"strings"

	"github.com/robfig/cron/v3"
)

// Schedule tells when a cron job runs: Next gives the first moment after another. Times are
// read in the location of the argument unless the text named a zone.
type Schedule = cron.Schedule

// ParseSchedule reads the text of a CronJob's spec.schedule: five fields, or
// a descriptor such as @daily or "@every 1h". The error is what validation shows to the user.
func ParseSchedule(text string) (Schedule, error) {
	// The library takes for granted that something follows the zone.
	if strings.HasPrefix(text, "TZ=") || strings.HasPrefix(text, "CRON_TZ=") {
		if !strings.Contains(text, " ") {
			return nil, fmt.Errorf("invalid schedule format: %s", text)
		}
	}
	return cron.ParseStandard(text)
}
