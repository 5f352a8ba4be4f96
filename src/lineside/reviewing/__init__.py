"""What a person answers: the questions, the log of answers, the page, agreement, records, other tools' files."""
