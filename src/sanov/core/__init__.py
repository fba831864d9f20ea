"""What every other part stands on: errors, options, files, frames, answers, pages and results."""
