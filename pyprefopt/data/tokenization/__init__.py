"""From chats to token segments."""
