"""From files and tables to rows of chats."""
